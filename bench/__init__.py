"""How fast Enigma is, where the time goes, and how far that is from what the machine could do.

    stages     each stage alone, on one core
    chunkers   cutting alone
    pipeline   the real program over real trees, against the sum of its stages
    keys       making and opening a keystore
    peers      the same trees through restic and borg
    targets    what the chunk size does to deduplication, speed and memory: why the default is what it is
    levels     what the compression level does to time and stored bytes: the same

`python -m bench --help` tells how to run it. A table is a module with a `run` that returns a Table; measure.py knows
how to measure, trees.py makes what is backed up, programs.py runs the programs, tables.py prints.

The rules, learnt from misleading figures: the first pass after a pause is two to three times slower and is thrown
away; competitors take turns within each repeat, so that a noisy minute hits all of them; every figure is a median with
its extremes beside it; a limit is made only of speeds measured in the same run.
"""
