"""Controls of pictures and PDFs: what reaches a decoder, where it runs, what a model sees."""

from tests.sabotage.control import Control

DECODING, PROCESS, WORKERS = "picture_decoding.py", "picture_process.py", "picture_workers.py"
REMOTE = "remote_pictures.py"
_LIMITS, _REFUSALS = "test_picture_limits.py::test_", "test_picture_refusals.py::test_"
_PIXELS, _WORKERS = "test_picture_decoding.py::test_", "test_picture_workers.py::test_"
_REMOTE, _SERVER = "test_remote_pictures.py::test_", "test_server.py::test_"
_DIES = _WORKERS + "a_picture_that_takes_its_worker_along_is_refused_and_the_next_one_works"

CONTROLS = (
    # --- bombs ---
    Control(
        *("bombs", "files have a most of bytes", DECODING),
        *("if size > limits.max_bytes:", "if False:"),
        _LIMITS + "bytes_beyond_the_limit_are_refused",
    ),
    Control(
        *("bombs", "pictures have a most of pixels, counted before decoding", DECODING),
        *("if width * height > limits.max_pixels:", "if False:"),
        _LIMITS + "a_pixel_bomb_is_refused_by_its_header",
    ),
    Control(
        *("bombs", "sides have a most of pixels", DECODING),
        *("if max(width, height) > limits.max_side:", "if False:"),
        _LIMITS + "a_side_beyond_the_limit_is_refused",
    ),
    Control(
        *("bombs", "frames are counted", DECODING),
        *("if frames > limits.max_frames:", "if False:"),
        _LIMITS + "too_many_frames_are_refused",
    ),
    Control(
        *("bombs", "scans of a JPEG are counted", DECODING),
        *('if kind == "JPEG" and _jpeg_scans', 'if kind == "none" and _jpeg_scans'),
        _LIMITS + "a_jpeg_of_very_many_scans_is_refused",
    ),
    Control(
        *("bombs", "comments of a GIF are bounded", DECODING),
        *("if self.in_header and self.tell() > MIB:", "if False:"),
        _LIMITS + "a_gif_with_endless_comments_is_refused",
    ),
    Control(
        *("bombs", "a WebP's canvas is checked before it is allocated", DECODING),
        *('if kind == "WEBP":', 'if kind == "none":'),
        _LIMITS + "a_webp_s_canvas_is_checked_before_its_plugin_could_allocate_it",
    ),
    Control(
        *("bombs", "pages of a PDF are counted", "pdf_pages.py"),
        *("if not 1 <= pages <= limits.max_pdf_pages:", "if pages < 1:"),
        "test_picture_pages.py::test_a_pdf_of_too_many_pages_is_refused",
    ),
    # --- decoders ---
    Control(
        *("decoders", "only five formats reach a decoder", DECODING),
        *('("BMP", re.compile(rb"BM")),', '("BMP", re.compile(rb"")),'),
        _REFUSALS + "what_is_no_accepted_picture_is_named_with_advice",
    ),
    Control(
        *("decoders", "a library's own words reach nobody", DECODING),
        "f\"Picture '{name}' is damaged or cut off and cannot be decoded. Send or save it again.\"",
        "str(error)",
        _REFUSALS + "a_file_cut_anywhere_is_refused",
    ),
    Control(
        *("decoders", "a page decodes in worker processes", "webui/desk.py"),
        *("        decode_in_workers()\n", ""),
        _WORKERS + "a_page_that_is_set_up_decodes_in_workers",
    ),
    Control(
        *("decoders", "a worker's memory is bounded", PROCESS),
        *("resource.setrlimit(resource.RLIMIT_AS, (bound,", "(lambda *_: None)(0, (bound,"),
        _WORKERS + "a_picture_that_needs_more_memory_than_the_limits_allow_is_refused",
    ),
    Control(
        *("decoders", "a worker's time is bounded", WORKERS),
        *("            too_slow.set()\n            self._process.kill()", "            pass"),
        _DIES + "[sleep-'sleep' takes longer than 3 seconds]",
    ),
    Control(
        *("decoders", "a worker opens no file and no connection", PROCESS),
        *('"RLIMIT_NOFILE", ', ""),
        _WORKERS + "a_worker_opens_nothing_and_starts_nothing",
    ),
    Control(
        *("decoders", "a worker has no secret in its environment", WORKERS),
        "env={key: os.environ[key] for key in _ENVIRONMENT if key in os.environ} | _QUIET",
        "env=dict(os.environ) | _QUIET",
        _WORKERS + "a_worker_knows_none_of_this_program_s_secrets",
    ),
    Control(
        *("decoders", "a worker's answer is checked against the limits", PROCESS),
        *("            check_size(first, second, name, limits)", "            pass"),
        _DIES + "[huge-'huge' cannot be read]",
    ),
    Control(
        *("decoders", "a worker's words are made fit to show", PROCESS),
        *('"".join(c for c in words if c.isprintable())[:_MOST_WORDS]', "words"),
        _WORKERS + "an_error_s_words_are_made_fit_to_show",
    ),
    Control(
        *("decoders", "a picture does not suffer for the one before", WORKERS),
        *("if answered or not is_used:", "if True:"),
        _WORKERS + "a_picture_does_not_suffer_for_the_one_before",
    ),
    Control(
        *("decoders", "a worker ends with its parent", PROCESS),
        *(
            "jobs.put(read_job(source))\n    finally:\n        os._exit(0)",
            "jobs.put(read_job(source))\n    finally:\n        pass",
        ),
        _WORKERS + "a_worker_ends_with_this_program_whatever_it_is_doing[killed-sleep]",
    ),
    Control(
        *("decoders", "a forked process holds none of its parent's workers", WORKERS),
        *("os.register_at_fork(after_in_child=_forget_parent)", "pass"),
        _WORKERS + "a_forked_process_has_workers_of_its_own_and_holds_none_of_ours",
    ),
    # --- pixels ---
    Control(
        *("pixels", "a turned photo is made upright", DECODING),
        *("return image if turn is None else image.transpose(turn)", "return image"),
        _PIXELS + "a_turned_photo_is_made_upright",
    ),
    Control(
        *("pixels", "transparency is put on white", DECODING),
        *("canvas.paste(rgb, mask=alpha)", "canvas.paste(rgb)"),
        _PIXELS + "every_mode_is_shown_on_white",
    ),
    Control(
        *("pixels", "colour profiles are applied", DECODING),
        *("if source.profile.xcolor_space.strip() == _PROFILE_SPACES[colour.mode]:", "if False:"),
        _PIXELS + "a_wide_gamut_picture_shows_its_colours_in_srgb",
    ),
    Control(
        *("pixels", "16 bits are scaled, not cut", DECODING),
        *("(levels.astype(np.uint32) * 255 + 32767) // 65535", "levels.clip(0, 255)"),
        _PIXELS + "a_16_bit_gradient_is_scaled_and_not_clipped",
    ),
    Control(
        *("pixels", "the first frame is the one that is seen", DECODING),
        '        image.load()\n        if kind == "PNG":',
        '        image.seek(1)\n        image.load()\n        if kind == "PNG":',
        _PIXELS + "the_first_frame_of_an_animation_is_shown",
    ),
    Control(
        *("pixels", "metadata is dropped", DECODING),
        *("    rgb.info = {}\n", ""),
        _PIXELS + "metadata_is_dropped_from_the_pixels",
    ),
    # --- addresses ---
    Control(
        *("addresses", "an address in place of a file is not fetched", "pictures.py"),
        *('if re.match(r"(https?|ftp|data|file):"', 'if re.match(r"(never):"'),
        _REFUSALS + "a_web_address_is_not_fetched",
    ),
    Control(
        *("addresses", "only allowed hosts are asked", REMOTE),
        *("if target.allowed_as not in self._allowed:", "if False:"),
        _REMOTE + "an_address_that_is_not_allowed_or_reads_two_ways_is_not_asked",
    ),
    Control(
        *("addresses", "an address that reads two ways is not asked", REMOTE),
        *("_NETLOC.fullmatch(parts.netloc.lower())", "_NETLOC.search(parts.netloc.lower())"),
        _REMOTE + "an_address_that_is_not_allowed_or_reads_two_ways_is_not_asked",
    ),
    Control(
        *("addresses", "every address of a name must be public", REMOTE),
        *("not all(is_public(address)", "not any(is_public(address)"),
        _REMOTE + "an_allowed_name_of_a_private_address_is_not_connected_to",
    ),
    Control(
        *("addresses", "addresses of IPv4 inside IPv6 are looked into", REMOTE),
        *("if number not in _UNICAST or any(number in each for each in _NO_HOSTS):", "if False:"),
        _REMOTE + "an_allowed_name_of_a_private_address_is_not_connected_to",
    ),
    Control(
        *("addresses", "the connection goes to the checked address", REMOTE),
        *("connect(address, port, _left(connect_by))", "connect(host, port, _left(connect_by))"),
        _REMOTE + "a_name_is_looked_up_once_and_the_checked_address_is_used",
    ),
    Control(
        *("addresses", "a redirect's address is checked like the first", REMOTE),
        *("following = self._checked(address)", "following = _parsed(address)"),
        _REMOTE + "a_redirect_elsewhere_is_not_followed",
    ),
    Control(
        *("addresses", "redirects are counted", REMOTE),
        *("range(self._max_redirects + 1)", "range(9)"),
        _REMOTE + "redirects_are_counted",
    ),
    Control(
        *("addresses", "a redirect does not leave TLS", REMOTE),
        *('if target.scheme == "https" and', 'if target.scheme == "never" and'),
        _REMOTE + "a_redirect_does_not_leave_tls",
    ),
    Control(
        *("addresses", "bytes are counted while they come", REMOTE),
        *("check_bytes(len(data), target.name", "check_bytes(len(data) // 1000, target.name"),
        _REMOTE + "a_body_without_end_is_cut_at_the_limit",
    ),
    Control(
        *("addresses", "all of it has one deadline", REMOTE),
        *(
            "self._stream.read(max_bytes, _left(self._deadline))",
            "self._stream.read(max_bytes, timeout)",
        ),
        _REMOTE + "a_host_that_drips_is_left_after_the_total_time[status]",
    ),
    Control(
        *("addresses", "nothing is unpacked", REMOTE),
        *('.strip().lower() != b"identity":', '.strip().lower() == b"never":'),
        _REMOTE + "a_compressed_body_is_not_unpacked",
    ),
    Control(
        *("addresses", "what comes is looked at, whatever it is called", REMOTE),
        *("                picture_format(found, target.name)\n", ""),
        _REMOTE + "what_comes_is_looked_at_whatever_it_is_called",
    ),
    Control(
        *("addresses", "gradio's own route fetches nothing", "shield.py"),
        *('refused = 404 if _FOREIGN_FILE.search(scope["path"]) else 0', "refused = 0"),
        _SERVER + "an_address_in_place_of_a_file_is_not_fetched",
    ),
    Control(
        *("addresses", "no proxy is asked", REMOTE),
        "network_backend=route) as pool",
        'network_backend=route, proxy=httpcore.Proxy(__import__("os").environ["http_proxy"])'
        ") as pool",
        _REMOTE + "nothing_of_the_environment_or_of_earlier_visits_is_used",
    ),
)
