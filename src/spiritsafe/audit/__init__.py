"""Where did this model come from: plan, run, case, verify, attest; one file a test in `tests/`."""
