"""The engine: bytes in, sealed packs out, across processes; and back. It knows no config, no SQL and no cloud.

Follow the bytes of a backup, a file a step:

    engine.py       the two verbs, write and read, and what they promise
    units.py        files and streams become places in order, and units of work
    floor.py        the parent's loop: questions, slots, jobs
    pool.py         processes: start, death, end          worker.py  their main loop
    messages.py     what the two sides say                ring.py    the memory they share
    labour.py       a job, stage by stage                 plan.py    every size in one place
    chunking.py     where a stream is cut
    compression.py  zstd, and when not to
    sealing.py      AES-256-GCM under a key per object
    sealer.py       compress, prove, seal into the open pack
    packs.py        a pack's bytes                        objects.py every other object's bytes
    opening.py      the way back                          targets.py, attributes.py  files as they were
    direct.py       past the page cache
    owner.py        what the engine asks of its owner
"""
