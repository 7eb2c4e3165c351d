"""A deployment seen from outside: metrics, alerts, dashboards, notices, traces. Pure."""
