"""Other runtimes beside ours, in turns on one machine: ``python -m docs.studies.peers``.

Builds one checkpoint of a published shape with random weights for each contestant, by each contestant's own
conversion, and measures all of them round by round. Writes ``docs/results/peers.json`` and the tables of
``docs/performance.md``.
"""
