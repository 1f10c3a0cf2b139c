"""What a browser and a monitoring system see of runs: a JSON API, a stream of events, metrics and one page."""
