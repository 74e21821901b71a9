"""The product around the libraries: daemon, workers, REST API, command line.

Nouns and verbs of ``operations`` only; blocks, SCSI and iSCSI are the libraries' business.
"""

from importlib.metadata import version

__version__ = version("blockyard")
