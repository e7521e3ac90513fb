"""Bytes in flight: payloads, batch tensors, decode scratch and finished bodies. Nothing else adds them up.

Every byte belongs to a :class:`Claim` (the records of one slab, open or in flight), every claim to the
:class:`Share` of one intake. With several intakes half of the budget is divided into guaranteed parts, one for each
share; the other half goes to whoever needs it first. So a slow pipeline that fills all it can get still leaves the
others room to work.
"""

from __future__ import annotations


class Budget:
    """See the module.

    Args:
        limit_bytes: ``limits.in_flight_bytes``. One record may exceed it where nothing else is in flight; that one
            record fits at all is checked when the process starts.
        shares: how many intakes there are.
    """

    def __init__(self, limit_bytes: int, shares: int = 1) -> None:
        self.limit_bytes = limit_bytes
        self.held = 0
        """Bytes held by all shares together."""
        self.freed = 0
        """Bytes given back since the start. Whoever waits for room looks again when this has changed."""
        guaranteed = limit_bytes // (2 * shares) if shares > 1 else 0
        self.owed = shares * guaranteed
        """Bytes of guaranteed parts that are not in use, all shares together."""
        self.shares = [Share(self, guaranteed) for _ in range(shares)]

    def __repr__(self) -> str:
        parts = ", ".join(str(share.held) for share in self.shares)
        return f"<Budget {self.held} of {self.limit_bytes} bytes: {parts}>"


class Share:
    """What one intake holds of the budget.

    Args:
        guaranteed: bytes that other shares leave alone.
    """

    __slots__ = ("_budget", "_owed", "guaranteed", "held")

    def __init__(self, budget: Budget, guaranteed: int) -> None:
        self.guaranteed = guaranteed
        self.held = 0
        self._budget = budget
        self._owed = guaranteed

    @property
    def free(self) -> int:
        """Bytes this share may still take; negative when it holds more than it may."""
        budget = self._budget
        return budget.limit_bytes - budget.held - budget.owed + self._owed

    @property
    def limit_bytes(self) -> int:
        return self._budget.limit_bytes

    @property
    def freed(self) -> int:
        """See :attr:`Budget.freed`."""
        return self._budget.freed

    def claim(self, nbytes: int = 0) -> Claim:
        """A new owner of so many bytes."""
        claim = Claim(self)
        claim.adjust(nbytes)
        return claim

    def add(self, nbytes: int) -> None:
        """For claims alone."""
        budget = self._budget
        self.held += nbytes
        budget.held += nbytes
        if nbytes < 0:
            budget.freed -= nbytes
        if self.guaranteed:
            owed = max(0, self.guaranteed - self.held)
            budget.owed += owed - self._owed
            self._owed = owed


class Claim:
    """Bytes of one owner, until it frees them."""

    __slots__ = ("_share", "nbytes")

    def __init__(self, share: Share) -> None:
        self.nbytes = 0
        self._share = share

    def adjust(self, by: int) -> None:
        """Hold so many bytes more, or fewer when negative."""
        self.nbytes += by
        self._share.add(by)

    def part(self, nbytes: int) -> Claim:
        """Give so many of these bytes to a new owner; the sum stays as it is."""
        self.nbytes -= nbytes
        claim = Claim(self._share)
        claim.nbytes = nbytes
        return claim

    def free(self) -> None:
        """Hold nothing any more."""
        self.adjust(-self.nbytes)

    def __repr__(self) -> str:
        return f"<Claim {self.nbytes} bytes>"
