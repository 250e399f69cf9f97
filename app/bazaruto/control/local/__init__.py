"""One machine with everything on it: what `bazaruto up`, `down`, `status` and `env` do."""
