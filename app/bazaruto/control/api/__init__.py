"""The control plane's HTTP face, a module for each topic; application.py puts them together."""

from bazaruto.control.api.application import ENDPOINTS, Api

__all__ = ["ENDPOINTS", "Api"]
