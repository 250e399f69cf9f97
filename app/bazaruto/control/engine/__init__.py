"""One run, from its guard to its outcome: knows directories and processes, and neither database nor HTTP."""
