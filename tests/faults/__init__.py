"""The fault suite: what may go wrong beside a run goes wrong, and its record is held against the truth."""
