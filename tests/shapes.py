"""The checker that tests put on every annotated function of mmspec: beartype, with ints allowed where floats are asked."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
