"""What help shows in the place of a value, and where several flags share it."""

from tyro.conf import arg

BITS = arg(metavar="BITS")
COUNT = arg(metavar="COUNT")
DATASET = arg(metavar="DATASET")
EPOCHS = arg(metavar="EPOCHS")
FILE = arg(metavar="FILE")
FOLDER = arg(metavar="FOLDER")
PERCENT = arg(metavar="PERCENT")
PROGRAM = arg(metavar="PROGRAM")
RATE = arg(metavar="RATE")
