"""`mmspec demo`."""

import importlib.util
import os
import signal
from dataclasses import dataclass
from threading import Event
from time import perf_counter

from mmspec.cli.common import (
    Device,
    Dtype,
    Host,
    Name,
    Root,
    Strings,
    Switch,
    Whole,
    console,
    quiet_libraries,
    torch_device,
    torch_dtype,
)
from mmspec.errors import MmspecError


@dataclass
class Demo:
    """Serve the demos as a web page (`--browser` opens it): image, speech, ask, a race with and without speculation,
    and how it works.

    Example: mmspec demo
    """

    models: Strings = ()
    """Bundled names, folders or hub ids, one for each modality; every bundled model if left out."""
    tabs: Strings = ()
    """image, speech, ask, race, how; all whose models are there if left out."""
    host: Host = "127.0.0.1"
    """The default is reachable from this machine alone."""
    port: Whole = None
    """The first free one from 7860 on if left out."""
    browser: Switch = False
    """Open a browser window."""
    share: Switch = False
    """Also give a public link for up to a week, through Gradio's servers; anyone who has it may use the demo."""
    root_path: Root = ""
    """The path, or the whole address, at which a reverse proxy shows the demo, such as /mmspec."""
    auth: Name = None
    """user:password that visitors must give; MMSPEC_DEMO_AUTH, which no list of processes shows, if left out."""
    dtype: Dtype = "bf16"
    """bf16, fp32, fp64 or fp16."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto is a GPU if there is one."""
    compile: Switch = False
    """Compile passes by torch.compile: minutes the first time, some seconds in every later process; for long work."""

    def run(self) -> int:
        from mmspec.demo.choice import choose_models, choose_tabs
        from mmspec.demo.waiting import WaitingPage

        began = perf_counter()
        tabs, login = choose_tabs(self.tabs), self.login
        names = choose_models(self.models, tabs)
        if importlib.util.find_spec("gradio") is None:
            raise MmspecError("the demos need gradio: pip install 'mmspec[speech,demo]'")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the demo as Ctrl-C does
        with WaitingPage(self.host, self.port) as waiting:
            say(f"{waiting.address} (Ctrl-C ends the demo)")
            if self.host not in ("127.0.0.1", "::1", "localhost") and login is None:
                say(f"warning: anyone who can reach {self.host} may use this demo: give --auth")
            if self.browser:
                import webbrowser

                webbrowser.open(waiting.address)

            def tell(status: str) -> None:
                waiting.status = status
                say(f"{status} …")

            tell("loading libraries")
            try:
                from mmspec.demo.app import build, launch
                from mmspec.demo.stage import Stage
            except ModuleNotFoundError as error:
                raise MmspecError(f"the demos need {error.name}: pip install 'mmspec[speech,demo]'") from None
            quiet_libraries()
            stage = Stage(names, torch_device(self.device), torch_dtype(self.dtype), tell=tell, compiled=self.compile)
            try:
                page = build(stage, tabs or None)
                waiting.close()
                options = dict(server_name=self.host, server_port=waiting.port, root_path=self.root_path or None)
                try:
                    link = launch(page, share=self.share, auth=login, **options)
                except OSError as error:
                    raise MmspecError(f"cannot listen at {self.host}:{waiting.port} ({error}): try again") from None
                except ValueError:  # Gradio asks its own server whether it is there
                    raise MmspecError(
                        f"{waiting.address} does not answer: let requests to it pass by the proxy (NO_PROXY)"
                    ) from None
                say(f"ready after {perf_counter() - began:.0f} s: {waiting.address}")
                if self.share:
                    say(f"public link: {link}" if link else "warning: no public link could be made")
                try:
                    Event().wait()
                except KeyboardInterrupt:
                    say("the demo has ended")
                page.close(verbose=False)
            finally:
                stage.close()
        return 0

    @property
    def login(self) -> tuple[str, str] | None:
        """The name and the password that visitors must give."""
        given = self.auth if self.auth is not None else os.environ.get("MMSPEC_DEMO_AUTH")
        if not given:
            return None
        user, colon, password = given.partition(":")
        if not (user and password):
            raise MmspecError("--auth must be user:password, as in --auth ada:secret")
        return user, password


def say(line: str) -> None:
    """A line on standard error."""
    console.print(f"mmspec demo: {line}", markup=False, highlight=False, soft_wrap=True)
