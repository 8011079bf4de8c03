"""`mmspec demo`."""

from dataclasses import dataclass

from mmspec.cli.common import quiet_libraries, torch_device, torch_dtype
from mmspec.errors import MmspecError


@dataclass
class Demo:
    """Serve the demos as a web page (`--browser` opens it): image, speech, ask, and a race with and without
    speculation.

    Example: mmspec demo
    """

    models: tuple[str, ...] = ()
    """Bundled names, folders or hub ids, one for each modality; every bundled model if left out."""
    tabs: tuple[str, ...] = ()
    """image, speech, ask, race; all whose models are there if left out."""
    host: str = "127.0.0.1"
    """The default is reachable from this machine alone."""
    port: int | None = None
    """The first free one from 7860 on if left out."""
    browser: bool = False
    """Open a browser window."""
    dtype: str = "bf16"
    """bf16, fp32, fp64 or fp16."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""

    def run(self) -> int:
        try:
            from mmspec.demo.app import TABS, launch
            from mmspec.demo.stage import Stage
        except ModuleNotFoundError as error:
            raise MmspecError(f"the demos need {error.name}: pip install 'mmspec[speech,demo]'") from None
        names = {name.lower(): name for name in TABS}
        for tab in self.tabs:
            if tab.lower() not in names:
                raise MmspecError(f"no tab {tab!r}: there is {', '.join(names)}")
        quiet_libraries()
        tabs = [names[tab.lower()] for tab in self.tabs]
        tasks = {task for tab in tabs for task in TABS[tab][1:]} if tabs and "Race" not in tabs else None
        stage = Stage(self.models, torch_device(self.device), torch_dtype(self.dtype), tasks)
        try:
            launch(
                stage,
                tabs or None,
                server_name=self.host,
                server_port=self.port,
                inbrowser=self.browser,
                footer_links=["api"],
            )
        except OSError as error:
            raise MmspecError(
                f"cannot listen at {self.host}:{self.port} ({error}): choose another --host or --port"
            ) from None
        return 0
