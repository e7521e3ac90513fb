"""The model: its session, providers, warm-up and the figures of ``auto``. Import from the modules themselves."""
