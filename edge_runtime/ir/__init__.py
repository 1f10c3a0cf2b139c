"""The intermediate representation: a graph of composite ops with static shapes, its op table, its checker, its text."""
