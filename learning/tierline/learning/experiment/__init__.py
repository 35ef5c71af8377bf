"""What an experiment file says, and what a run of it is made of, wherever it runs."""
