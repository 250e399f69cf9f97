"""What each constraint of the database means to a client: the last word when two requests race."""

from __future__ import annotations

import psycopg

from bazaruto.problems import FieldError, Problem

# Wrong values, by the field that has to change: 422.
_FIELDS = {
    "users_email_form": ("email", "must be an e-mail address in ASCII, like name@example.com"),
    "users_name_length": ("name", "must have 1 to 200 characters"),
    "users_role_known": ("role", "must be customer, agent or admin"),
    "policies_user_exists": ("user_id", "there is no such user"),
    "policies_product_known": ("product", "there is no such product"),
    "policies_coverage_range": ("coverage_minor", "is out of range"),
    "policies_premium_range": ("premium_minor", "is out of range"),
    "policies_premium_within_coverage": ("premium_minor", "must not exceed the coverage"),
    "policies_currency_form": ("currency", "must be a currency code of ISO 4217"),
    "policies_term_order": ("ends_on", "must not lie before starts_on"),
    "policies_term_range": ("ends_on", "is out of range"),
    "claims_policy_exists": ("policy_id", "there is no such policy"),
    "claims_amount_range": ("amount_minor", "is out of range"),
    "claims_amount_within_coverage": ("amount_minor", "must not exceed the policy's coverage"),
    "claims_currency_form": ("currency", "must be a currency code of ISO 4217"),
    "claims_currency_of_policy": ("currency", "must be the policy's currency"),
    "claims_incident_not_in_future": ("incident_on", "must not lie in the future"),
    "claims_incident_within_term": ("incident_on", "must lie inside the policy's term"),
    "claims_description_length": ("description", "must have 1 to 4000 characters"),
}
# Right values that clash with what is there: 409.
_CLASHES = {
    "users_email_any_case": "Another user has this e-mail, in this or another case.",
    "policies_transition": "The policy's status does not allow this.",
    "policies_activate_before_end": "The policy's term is over, it cannot become active.",
    "policies_lapse_after_end": "The policy's term is not over, it cannot lapse; it can be canceled.",
    "policies_terms_are_fixed": "The policy's terms are fixed since it left draft.",
    "claims_policy_in_force": "Only on active and lapsed policies can be claimed.",
    "claims_transition": "The claim's status does not allow this.",
    "claims_are_fixed": "What was claimed is fixed.",
}


def problem_of(error: psycopg.Error) -> Problem | None:
    """The refusal this violation stands for; None when the client is not to blame."""
    name = error.diag.constraint_name or ""
    if name in _FIELDS:
        field, message = _FIELDS[name]
        return Problem(422, "Wrong input", f"{field}: {message}", errors=[FieldError(field, message)])
    if name in _CLASHES:
        return Problem(409, "Conflict", _CLASHES[name])
    return None
