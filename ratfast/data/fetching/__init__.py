"""Downloading the published data sets into DomainBed's folders."""

from ratfast.data.fetching.fetch import fetch

__all__ = ["fetch"]
