"""Which labels list synonyms: those of ImageNet's 1,000 labels that have a comma, such as "tench, Tinca tinca".

A comma in any other label belongs to the name: "beach, summer" is one class of holiday photos, and "summer" is none.
The labels themselves are in `conversion/imagenet_names.py`. This file travels to the Hub in every `pipeline_dit.py`, so
it keeps 24 bits of each label's CRC-32 in place of its words: another label passes for one of these once in 34,000.
"""

import base64
import zlib

IMAGENET = """
ACNhACxDAD+9APJMASwIAUZ+AiFtAqdSArXGAtvXAupxBE72BKFbBYFTBa3lBjYMBkOEBmo1CGIbCGlhCQe7CZSCCfJECfeVClG+Cw8ADEkYDJTNDJwl
Dc+qDd/pDxMiD5DzEAUEEDU3EL+YEL+7ETsREk/lEyFhFdlQF8dMGAsVGHEjGSHEGWNLGcllG6PPG6odG6rQHCq+HRp/HeaSHi/hHkblHnrIHrUaHtxo
HxYcHy5AH0JKIG7tIUUpIV+8IW4oIZcEIe/SI1yKI8SkJGD0JMkrJM/6JO62JVTZJZSMJew9JhKCJhsFJiOPJjjOJoeXJpVkJsgKJvCkJvGjKH8qKLuZ
K1c4Lbi2MnZ2MwXmM4ktNBmxNC3tNHI/NZCZNb0uN07dN8qfN8+mOC3NOE0AOHDQOJAyOPcjOXDVOgtVPBc6PCOLPI+xPT1gPd0JPgcMPj1cP1bPQG9b
QHW8QLKnQLsCQNwrQOqEQZCHQfPpQqRcQ8NmRBG8RO+yRTBiRaGhRiiDRkEdR1Y5R+crSG2FSMJNSPbBSVnASXy5SZf5ScruSiONSkNpSkQXSwJgS4TK
S/eiTM7OTUiCTd5MTeCZTpWpTxibUAnKUMiLURCYUTJpUm/PUz6EU58dVErbVKj6Vhb+VnGMVncIVpSTVsFaWEMqWPnrWY4SWpw9WrJ4Wu+nWxiiW6h1
XPsJXi+VXztJXzuIX7/0YBhYYJbYYJ1BYSn1YeCSYlA7Y1aeY4qKZGSYZSB7ZatjZzvTZ2yUZ4AJZ5saaACjaBZ9aMHUaMUfaSjcaYt+aZBnaZ5wahl+
ajOPalewanV6ars/awm9a1+ea8rpa/cHbFJkbPYWbRHobw5ZbzWacHJ/cJincLN8cSyacY5/cjyXcwgRcygLc6TDc+JzdFC5dGIEdHKUdJCldMMYdl7h
d5DKd9B8eJnaecoEespUeul0ewjwfENIfbL9fb6GfdMAftVaf6KjgOJJgTJZgUukgX46gi/mgoqxgzOqg4WFg6ljg64ahIfuhWd2hXQrhcVfhmRkh3VT
h6f2iC4QiHM6iLI8ieoLiiKfis/oi7pVi/lijGSwjHRGjLrDjPmpjP9Xjcm2jiuljyFZjzCzj+AakB9kkDhEkPhZkTwUkoPjkt2lk87qlJHKlNyglVHd
lY/bl2ckmMnWmNIpmYoomYrOmjQcmlDGmoHbmpk/mvm3mv5Am1Tem5CqnEq5nHKvnH2FnPAlnVu9nY4nndNTnd5Ynfq3nqDMnuI2nzXon4cqoCBHpYfE
pYmApaEQpfncpnUaprZNp21cqJuJqP7CqaCCqcuwqpKkqy4lq0k2q8harLvrribErtbert3hrvHGr1sAr7wcr+r9sAiHsC1msWwBsXlqsq/6stNkstym
sv/Ts0T8s2t5tiaFtuIFtveztvvyt2unt+B1uBLbuDlKuLtJuM0yuUcOuVRKuXYEufWTutT0u3Aeu6J0u+mhvC4tvJL9vLNOvPcyvSb7vUMevlWivmXd
vm+8vuRHv6x2wB2qwT7swipwwsVKwsW0xGCGxJCExL77xPFJxRLuxYY1xbvLxch/x2gTyIcZyaKhytaiyu7uyzsyy118zJiWzOVqzY2MzhuAzk5kzyha
0AGk0F2Z0F3Y0YQy0b+10mtx0ozP0v+/0xWP01wl04/91KbJ1NuF1oZQ1pHf12vq2GH52UBs2Zzn2a9e2eia2hur24eF3Voz3YpM3iGV3k0Z3qii37Xe
4IkI4P4I4SxS4UJt4XZc4lyV4n+A4rA24vw240YE43zH483w5fbi5kV85kpQ5xY85yfG599+6EHF6Pib6ayN6gjQ6rwv6tQy6zu2641R66/u7S7p7dWF
7hoe7hwY7qek7tzv8GUc8Ok88QOI8ZRb8qax9BIt9Ntw9UNY+Kvg+d2v+gmL+mdd+2kK+8AE++zn/BPV/BrP/KU//PJ8/Rx0/aJB/7F8/7ls//EI
"""  # 3 bytes for each label, in ascending order


def lists_synonyms(label: str) -> bool:
    """Return whether a label is one of ImageNet's that list several names between commas.

    Args:
        label: Label as `normal_name` returns it: with one space after each comma.
    """
    return "," in label and checksum(label) in IMAGENET_CHECKSUMS


def checksum(label: str) -> bytes:
    """Return the last 24 bits of a label's CRC-32; (3,)."""
    return zlib.crc32(label.encode("utf-8", "backslashreplace")).to_bytes(4, "big")[1:]


def _in_threes(joined: bytes) -> frozenset[bytes]:
    return frozenset(joined[start : start + 3] for start in range(0, len(joined), 3))


IMAGENET_CHECKSUMS = _in_threes(base64.b64decode(IMAGENET))
