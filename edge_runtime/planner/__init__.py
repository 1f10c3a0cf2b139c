"""From a training graph to an arena: how long every value lives, where its bytes lie, and which plan fits a budget."""
