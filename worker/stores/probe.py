"""Whether the stores of a configuration answer: one question about an object that is not there, for each allowed beginning."""

from __future__ import annotations

from worker.errors import Reject, StartError
from worker.outside import Away
from worker.stores import Denied, Missing, Store
from worker.stores.url import Url

NAME = "streaminfer-check"
"""The object that is asked for."""


def probe(store: Store, root: Url) -> str:
    """What a store says of an object that is most likely not there.

    Raises:
        StartError: the store cannot be reached, or the address may not be.
    """
    url = Url(root.scheme, root.host, root.port, root.path + NAME)
    try:
        store.size(url)
    except Missing:
        return f"{root}: answers"
    except Denied as error:
        return f"{root}: answers, but not about an object that is not there ({error})"
    except Reject as error:
        raise StartError(f"input.reference.allow: {error}") from None
    except Away as error:
        raise StartError(f"the store {root} cannot be reached: {error}") from None
    return f"{root}: answers"
