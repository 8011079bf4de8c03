"""The checker that tests put on mmspec's tensor code (see conftest.py): beartype, with ints allowed where floats are
asked.
"""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
