"""Levers that make a model smaller before it is quantised: each takes a `FloatModel` and gives one."""
