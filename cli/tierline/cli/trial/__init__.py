"""A trial: a hierarchy run on this machine over a set of samples, watched and reported (`demo`, `bench latency`)."""
