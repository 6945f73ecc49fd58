"""Endless runs: a loop in this process for a local one, a job that is submitted for one on a cluster."""
