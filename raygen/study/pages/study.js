"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const make = (name, text) => {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const total = data.trials.length;
  const STORE = `study:${data.study}:${data.form}`;
  const LEAST_MS = 250; // a second press within this time is the first one's echo
  const address = (name) => (data.pictures ? `data:image/webp;base64,${data.pictures[name]}` : `pictures/${name}.webp`);

  // --- what is kept -------------------------------------------------------------------------------------------

  let state = { rater: "", answers: [] };
  let keeps = true;
  function save() {
    try { localStorage.setItem(STORE, JSON.stringify(state)); } catch { keeps = false; }
  }
  function stored() {
    try {
      localStorage.setItem(`${STORE}:test`, "1");
      localStorage.removeItem(`${STORE}:test`);
      const found = JSON.parse(localStorage.getItem(STORE));
      return found && Array.isArray(found.answers) && found.answers.length <= total ? found : null;
    } catch { keeps = false; return null; }
  }

  function screen(name) {
    for (const id of ["start", "trial", "paused", "end"]) $(id).hidden = id !== name;
    scrollTo(0, 0);
    if (name === "paused" || name === "end") $(name).querySelector(".primary").focus({ preventScroll: true });
  }

  // --- a trial: the clock runs while its pictures are seen ------------------------------------------------------

  let ready = false, shownAt = 0, spent = 0, running = false, next = 0;
  function clock(on) {
    if (on === running) return;
    if (on) shownAt = performance.now();
    else spent += performance.now() - shownAt;
    running = on;
  }

  function show() {
    clearTimeout(next);
    const place = state.answers.length;
    if (place >= total) return finish();
    const trial = data.trials[place];
    ready = false; spent = 0; running = false;
    $("progress").value = place / total;
    $("place").textContent = `${place + 1} of ${total}`;
    $("back").disabled = place === 0;
    $("problem").hidden = $("skip").hidden = true;
    $("tie").hidden = !data.ties;
    $("mask").hidden = !trial.mask;
    if (trial.mask) $("mask").src = address(trial.mask);
    $("text").hidden = !trial.text;
    $("text").textContent = trial.text || "";
    $("attributes").replaceChildren(...trial.attributes.map((name) => make("li", name)));
    $("condition").hidden = !trial.mask && !trial.text && !trial.attributes.length;
    const images = trial.pictures.map((name, i) => {
      const image = make("img");
      image.alt = `Picture ${i + 1}`;
      image.src = address(name);
      return image;
    });
    $("choices").replaceChildren(...images.map((image, i) => {
      const button = make("button");
      button.type = "button";
      button.className = "choice";
      button.disabled = true;
      button.append(image, make("kbd", String(i + 1)));
      button.onclick = () => choose(i);
      return button;
    }));
    screen("trial");
    fit();
    Promise.all(images.map((image) => image.decode())).then(() => {
      if (data.trials[state.answers.length] !== trial) return;
      ready = true;
      document.querySelectorAll(".choice").forEach((button) => (button.disabled = false));
      clock(!$("trial").hidden && !document.hidden);
      ahead(place + 1);
    }, () => {
      $("problem").hidden = $("skip").hidden = false;
      $("problem").textContent = "A picture does not open. Keep the folder pictures/ beside this page, and reload it.";
    });
  }

  function ahead(place) {
    if (place < total) for (const name of data.trials[place].pictures) new Image().src = address(name);
  }

  /** Pictures are as large as the window allows; lines are full where that costs little, so that none stands alone. */
  function fit() {
    const choices = $("choices"), count = choices.children.length;
    if (!count) return;
    choices.style.maxWidth = "none";
    const gap = parseFloat(getComputedStyle(choices).gap) || 0, width = choices.clientWidth;
    const height = Math.max(220, innerHeight - choices.getBoundingClientRect().top - scrollY - (data.ties ? 76 : 24));
    let side = 0, across = 1, best = 0;
    for (let columns = 1; columns <= count; columns++) {
      const lines = Math.ceil(count / columns);
      const fits = Math.min((width - gap * (columns - 1)) / columns, (height - gap * (lines - 1)) / lines, 640);
      const worth = fits * (count % columns ? 0.85 : 1);
      if (worth > best) [side, across, best] = [Math.floor(fits), columns, worth];
    }
    choices.style.setProperty("--side", `${side}px`);
    choices.style.maxWidth = `${across * side + gap * (across - 1)}px`;
  }

  function choose(choice) {
    if (!ready && choice !== "skipped") return;
    if (ready && spent + performance.now() - shownAt < LEAST_MS) return;
    ready = false;
    clock(false);
    const trial = data.trials[state.answers.length];
    state.answers.push({ trial: trial.id, choice, ms: Math.round(spent), at: new Date().toISOString() });
    save();
    const chosen = document.querySelectorAll(".choice")[choice];
    if (chosen) chosen.classList.add("chosen");
    next = setTimeout(show, chosen ? 160 : 0);
  }

  function back() {
    if (!state.answers.length || ($("trial").hidden && $("end").hidden)) return;
    state.answers.pop();
    save();
    show();
  }

  function pause() {
    if ($("trial").hidden) return;
    clearTimeout(next);
    clock(false);
    $("paused-place").textContent = `${state.answers.length} of ${total} are answered.`;
    screen("paused");
  }

  function goOn() {
    if (!ready) return show();
    screen("trial");
    clock(ready && !document.hidden);
  }

  // --- the end --------------------------------------------------------------------------------------------------

  function lines() {
    return state.answers.map((answer, i) => JSON.stringify({ study: data.study, form: data.form, rater: state.rater, place: i, ...answer })).join("\n") + "\n";
  }
  const fileName = () => `answers-${data.study}-${String(data.form).padStart(2, "0")}-${state.rater.replace(/[^\p{L}\p{M}\p{N}-]+/gu, "_")}.jsonl`;
  const file = () => new File([lines()], fileName(), { type: "application/jsonl" });

  function finish() {
    $("thanks").textContent = `All ${total} choices are made.`;
    $("share").hidden = !(navigator.canShare && navigator.canShare({ files: [file()] }));
    screen("end");
  }

  $("download").onclick = () => {
    const link = make("a");
    link.href = URL.createObjectURL(file());
    link.download = fileName();
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  $("share").onclick = () => navigator.share({ files: [file()], title: fileName() }).catch(() => {});
  $("copy").onclick = () => {
    const done = () => { $("copied").textContent = "Copied."; };
    const old = () => {
      const area = make("textarea");
      area.value = lines();
      document.body.append(area);
      area.select();
      if (document.execCommand("copy")) done();
      area.remove();
    };
    if (navigator.clipboard) navigator.clipboard.writeText(lines()).then(done, old);
    else old();
  };

  // --- start ----------------------------------------------------------------------------------------------------

  const minutes = Math.max(1, Math.round((total * 6) / 60));
  $("lead").textContent = `${total} choices, about ${minutes} minute${minutes > 1 ? "s" : ""}.`;
  $("instructions").textContent = data.instructions;
  $("instructions").hidden = !data.instructions;
  const how = (keys, words) => {
    const line = make("li");
    for (const key of keys) line.append(make("kbd", key), " ");
    line.append(words);
    if (keys.length) line.className = "keys";
    $("how").append(line);
  };
  const count = data.trials[0].pictures.length;
  how([], `Choose the picture that answers the question ${count > 2 ? "best" : "better"}. Your first impression counts.`);
  how(count === 2 ? ["1", "2", "←", "→"] : Array.from({ length: count }, (_, i) => String(i + 1)), "choose a picture");
  if (data.ties) how(["0"], "no difference");
  how(["Backspace"], "take the last choice back");
  how(["P"], "pause; you can also close the page and continue later");

  $("begin").onsubmit = (event) => {
    event.preventDefault();
    const rater = $("rater").value.trim();
    if (!rater) return;
    state = { rater, answers: [] };
    save();
    show();
  };
  $("continue").onclick = () => show();
  const anew = (question) => {
    if (!confirm(question)) return;
    state = { rater: "", answers: [] };
    try { localStorage.removeItem(STORE); } catch { keeps = false; }
    $("resume").hidden = true;
    $("begin").hidden = false;
    $("rater").value = $("copied").textContent = "";
    screen("start");
  };
  $("anew").onclick = () => anew("Delete these answers and start again?");
  $("other").onclick = () => anew("These answers are deleted from this browser. Have they been downloaded?");
  $("back").onclick = $("last").onclick = back;
  $("pause").onclick = pause;
  $("go-on").onclick = goOn;
  $("tie").onclick = () => choose("tie");
  $("skip").onclick = () => choose("skipped");
  document.addEventListener("visibilitychange", () => clock(!document.hidden && ready && !$("trial").hidden));
  addEventListener("resize", fit);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (!$("paused").hidden && (event.key === "p" || event.key === "P")) return goOn();
    if ($("trial").hidden) return;
    const arrow = count === 2 ? { ArrowLeft: 0, ArrowRight: 1 }[event.key] : undefined;
    const choice = arrow ?? Number(event.key) - 1;
    if (choice >= 0 && choice < count) choose(choice);
    else if (event.key === "0" && data.ties) choose("tie");
    else if (event.key === "Backspace") back();
    else if (event.key === "p" || event.key === "P" || event.key === "Escape") pause();
    else return;
    event.preventDefault();
  });

  const found = stored();
  if (found && found.rater) {
    state = found;
    $("begin").hidden = true;
    $("resume").hidden = false;
    $("stored").textContent = `${found.rater}: ${found.answers.length} of ${total} are answered.`;
  }
  $("forgetful").hidden = keeps;
  screen("start");
  if (found && found.answers.length === total) finish();
})();
