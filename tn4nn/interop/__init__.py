"""Networks and weights from other libraries, and back: `einsum`, `quimb`, `tensornetwork`, and `chain`
for the cores of MPO layers.

Importing these modules imports none of the libraries; a function does, and says what installs a missing one.
"""
