"""`hedgerow serve`: one process that keeps a SuperLink, its SuperExec and the dashboard alive, and plays jobs on them.

config.py      server.toml
state.py       the state folder: its lock, its files, the tables of devices and jobs
processes.py   children that do not outlive us
launch.py      nor does the server app outlive them; children.py says which there are
superlink.py   the SuperLink, with one door for devices and one for us (door.py says who may pass)
control.py     what we ask of it: the one place that speaks Flower's Control API
fleet.py       the SuperLink's devices are those of the table
bundle.py      our apps as a Flower bundle
player.py      jobs, one after another, each over as many attempts as it takes
supervisor.py  the loop that does all of it
progress.py    what `hedgerow run --follow` prints
"""
