"""luthier beside its peers on the same work: ``luthier bench``.

Each side trains in a process of its own and stands still while another one runs its steps:

    cases      what is measured, one entry a case
    corpora    the texts, built on the machine that measures
    work       one case made ready: the order of rows, the files, the facts of the tokens
    steering   the pipe over which a side is let run, and stopped
    sides/     the programs that run: luthier, sentence-transformers, transformers, the peak
    race       starts the sides, lets them run in turn, and collects what they say
    summary    from periods to speeds, ratios and memory
    page       docs/benchmarks.md and docs/benchmarks.json

What steers imports no torch; only the sides do.
"""
