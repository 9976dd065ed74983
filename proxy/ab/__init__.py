"""Experiments on live traffic: A/B tests of policies, as the operator sees them."""
