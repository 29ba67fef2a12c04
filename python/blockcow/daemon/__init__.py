"""The daemon that stands in front of devices for programs that know nothing of blockcow: a keeper and a worker.

The keeper holds what must stay open and starts the worker anew when it dies; the worker does all the work.
"""
