"""Networks and weights from other libraries, and back: `einsum`, `quimb`, `tensornetwork`.

Importing these modules imports none of the libraries; a function does, and says what installs a missing one.
"""
