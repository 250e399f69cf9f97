"""bazaruto, the control plane."""
