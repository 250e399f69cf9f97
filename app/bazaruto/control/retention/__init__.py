"""Retention: which runs and events may go, what keeps them, and how the disk is given back."""
