"""Fairness methods: one file each, named in `model.METHODS`."""
