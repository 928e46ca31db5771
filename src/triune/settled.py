"""Imported by name, before all else, by the server that workers are forked from: its libraries are settled.

Alone of all modules this one does something when it is imported; nothing else imports it.
"""

from triune.libraries import settle_libraries

settle_libraries()
