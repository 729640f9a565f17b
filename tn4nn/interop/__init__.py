"""Networks and weights from other libraries, and back: `einsum`, `quimb`, `tensornetwork`; from `tensorkrowch`,
`tltorch`, and `chain` for the cores of any MPO; `engines` that contract in tn4nn's place.

Importing these modules imports none of the libraries; a function does, and says what installs a missing one.
"""
