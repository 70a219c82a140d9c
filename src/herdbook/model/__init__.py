"""The one decoder: its config and accounting (`config`), attention (`attention`) and the module itself (`decoder`)."""
