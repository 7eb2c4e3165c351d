"""The layers below the signatures: each module reads one class of messages in a log."""
