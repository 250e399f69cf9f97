"""What can go wrong with a lab, as sentences."""


class LabError(Exception):
    """What failed, where, and what to do."""
