"""What is stored and how it is read and written. The rooms above know a repository only through this one.

opening.py    make, open, recover; the user's configuration beside the sealed one (settings.py)
repository.py what an open repository consists of
sessions.py   one run as others see it; view.py lists the providers into the manifest
writing.py    packs, index, snapshot, in that order; the engine's owner
reading.py    single chunks, and many at once by pack
catalog.py    entries in leaves below nodes; chunk lists
store.py      small sealed objects; names.py their keys; placing.py where packs go; keycopies.py keys at providers
engine.py     the engine, its failures in our words; heads.py what the newest objects say they have seen
"""
