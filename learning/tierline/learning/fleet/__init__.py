"""Learning on a running fleet: jobs, and what each process does for them."""
