"""The programs that run. Each is called as ``python -m luthier.benchmark.sides.NAME JOB FD``:
a ``work.Job`` written down, and its end of the pipe. A new peer is a new file here."""
