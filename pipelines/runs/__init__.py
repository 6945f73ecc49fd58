"""Bounded runs: everything checked before work starts, the pipeline, its workers, its accounts."""
