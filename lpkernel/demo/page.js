// Painting a mask and showing a cell's source, which must follow the pointer; sending a picture, and getting it back with
// a result in it; choosing, enlarging and saving a result; saying what happened to who cannot see it.
(() => {
  "use strict";
  let painting = null;

  const place = (element, event) => {
    const box = element.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };

  const send = (name, text) => {
    const field = document.querySelector(`#${name} :is(textarea, input)`);
    if (!field) return;
    const kind = field.tagName === "TEXTAREA" ? HTMLTextAreaElement : HTMLInputElement;
    Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(field, text);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };

  // The server hears of a field when it changes, and so that the same words are heard twice, the time goes before them.
  const tell = (name, words) => send(name, `${Date.now()} ${words}`);

  const draw = (canvas, from, to) => {
    const context = canvas.getContext("2d");
    const tools = canvas.closest(".lpk-paint").parentElement;
    context.globalCompositeOperation = tools.querySelector(".lpk-erase").checked ? "destination-out" : "source-over";
    context.strokeStyle = "#fff";
    context.lineCap = "round";
    context.lineWidth = (tools.querySelector(".lpk-brush").value / 128) * canvas.width;
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(to[0] + 0.01, to[1]);  // a line of no length would not be drawn, round ends or not
    context.stroke();
  };

  const stroke = (event) => {
    const { canvas, last } = painting;
    const [x, y] = place(canvas, event);
    const here = [x * canvas.width, y * canvas.height];
    draw(canvas, last || here, here);
    painting.last = here;
  };

  document.addEventListener("pointerdown", (event) => {
    if (!event.target.matches || !event.target.matches(".lpk-paint canvas")) return;
    event.preventDefault();
    event.target.setPointerCapture(event.pointerId);
    painting = { canvas: event.target, last: null };
    stroke(event);
  });
  document.addEventListener("pointermove", (event) => {
    if (painting) stroke(event);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    document.addEventListener(end, () => {
      if (!painting) return;
      send("lpk-mask", painting.canvas.toDataURL("image/png"));
      painting = null;
    });
  }

  const clear = (canvas) => canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  new MutationObserver((changes) => {
    for (const { target } of changes) clear(target.querySelector("canvas"));
  }).observe(document, { subtree: true, attributeFilter: ["data-turn"] });

  // With the keyboard: a mark that the arrow keys move, in 16ths of the picture; the space bar paints there.
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const moved = (element, key, steps) => {
    const old = (element.dataset.at || `${steps >> 1},${steps >> 1}`).split(",").map(Number);
    const at = old.map((one, axis) => Math.min(steps - 1, Math.max(0, one + ARROWS[key][axis])));
    element.dataset.at = at.join(",");
    return at;
  };
  const GRID = 32;
  document.addEventListener("keydown", (event) => {
    const canvas = event.target.matches && event.target.matches(".lpk-paint canvas") ? event.target : null;
    const view = event.target.matches && event.target.matches(".lpk-view") ? event.target : null;
    if (canvas && (ARROWS[event.key] || event.key === " ")) {
      event.preventDefault();
      if (ARROWS[event.key]) moved(canvas, event.key, GRID);
      const [x, y] = (canvas.dataset.at || "16,16").split(",").map((one) => (Number(one) + 0.5) / GRID);
      canvas.nextElementSibling.style.cssText = `display:block;left:${100 * x}%;top:${100 * y}%`;
      if (event.key !== " ") return;
      const here = [x * canvas.width, y * canvas.height];
      draw(canvas, here, here);
      send("lpk-mask", canvas.toDataURL("image/png"));
    } else if (view && ARROWS[event.key]) {
      event.preventDefault();
      const grid = Number(view.closest(".lpk-cells").dataset.grid);
      show(view, moved(view, event.key, grid).map((one) => (one + 0.5) / grid), false);
    }
  });

  const show = (view, where, hold) => {
    const sheet = view.closest(".lpk-cells");
    if (sheet.given !== sheet.dataset.map) {  // the page changes a sheet in place
      sheet.given = sheet.dataset.map;
      sheet.sources = JSON.parse(sheet.given);
      sheet.dataset.held = "";
    }
    if (sheet.dataset.held && !hold) return;
    const grid = Number(sheet.dataset.grid);
    const [x, y] = where.map((part) => Math.min(grid - 1, Math.max(0, Math.floor(part * grid))));
    const source = String(sheet.sources[y * grid + x]);
    const cell = `${x},${y}`;
    if (hold) sheet.dataset.held = sheet.dataset.held === cell ? "" : cell;
    for (const mark of sheet.querySelectorAll(".lpk-view i")) {
      mark.style.cssText = `display:block;left:${(100 * x) / grid}%;top:${(100 * y) / grid}%;` +
        `width:${100 / grid}%;height:${100 / grid}%`;
    }
    for (const card of sheet.querySelectorAll(".lpk-card")) {
      card.classList.toggle("lpk-shown", card.dataset.source === source);
    }
  };
  document.addEventListener("mousemove", (event) => {
    const view = event.target.closest && event.target.closest(".lpk-view");
    if (view) show(view, place(view, event), false);
  });
  document.addEventListener("click", (event) => {
    const view = event.target.closest && event.target.closest(".lpk-view");
    if (view) show(view, place(view, event), true);
    const near = (selector) => event.target.closest && event.target.closest(selector);
    const thumb = near(".lpk-thumb");
    if (thumb && thumb.dataset.index) {
      for (const other of thumb.parentElement.children) other.setAttribute("aria-pressed", String(other === thumb));
      tell("lpk-choice", thumb.dataset.index);
    } else if (thumb) enlarge(thumb.closest(".lpk-result"));
    const kept = near(".lpk-save");
    if (kept) save(kept.closest(".lpk-result, dialog").querySelector(".lpk-made").src, kept.dataset.name);
    const whole = near(".lpk-whole");
    if (whole) putBack(whole);
    if (near("#lpk-edit-take")) shows(null);
    const dice = near(".lpk-dice");
    if (dice) send(dice.id.replace("dice", "seed"), String(crypto.getRandomValues(new Uint32Array(1))[0] >>> 1));
    if (event.target.matches && event.target.matches(".lpk-clear")) {
      clear(event.target.closest(".lpk-tools").parentElement.querySelector("canvas"));
      send("lpk-mask", "");
    }
  });

  const save = (source, name) => {
    const link = document.createElement("a");
    link.href = source;
    link.download = name;
    link.click();
  };

  // One dialog for all results: the picture as large as fits, to be saved; Escape closes it and goes back.
  const enlarge = (result) => {
    let dialog = document.querySelector("#lpk-large");
    if (!dialog) {
      dialog = document.createElement("dialog");
      dialog.id = "lpk-large";
      dialog.setAttribute("aria-label", "a result, enlarged");
      dialog.innerHTML = '<img class="lpk-made" alt=""><img class="lpk-map" alt=""><p>' +
        '<button type="button" class="lpk-save">download</button> <button type="button" class="lpk-close">close</button></p>';
      dialog.addEventListener("click", (event) => {
        if (event.target === dialog || event.target.matches(".lpk-close")) dialog.close();
      });
      document.body.append(dialog);
    }
    for (const kind of [".lpk-made", ".lpk-map"]) {
      for (const part of ["src", "alt"]) dialog.querySelector(kind)[part] = result.querySelector(kind)[part];
    }
    dialog.querySelector(".lpk-save").dataset.name = result.querySelector(".lpk-save").dataset.name;
    dialog.showModal();
  };

  // Lines that say that all is done, or what went wrong, are read out; those of the stages between are not.
  const said = document.createElement("div");
  said.id = "lpk-said";
  said.setAttribute("role", "status");
  const say = (line) => {
    if (line && !line.endsWith("…") && line !== said.textContent) said.textContent = line;
  };
  // Gradio names parts that are not in the page yet, which confuses those who read it out.
  const tidy = () => {
    for (const one of document.querySelectorAll("[aria-controls], [data-controls]")) {
      const name = one.getAttribute("aria-controls") || one.dataset.controls;
      one.dataset.controls = name;
      if (document.getElementById(name)) one.setAttribute("aria-controls", name);
      else one.removeAttribute("aria-controls");
    }
  };

  const watch = () => {
    const heard = new Map();  // of each note; the page may replace a note or what is in it
    new MutationObserver(() => {
      for (const note of document.querySelectorAll(".lpk-note")) {
        const line = [...note.querySelectorAll(".lpk-line")].map((one) => one.textContent).join("; ");  // not Gradio's clock
        if (line === heard.get(note.id)) continue;
        heard.set(note.id, line);
        say(line);
      }
      tidy();
      if (!said.isConnected) (document.querySelector("main") || document.body).append(said);
    }).observe(document.body, { subtree: true, childList: true, characterData: true });
    tidy();
  };
  if (document.body) watch();
  else document.addEventListener("DOMContentLoaded", watch);

  // What is painted on: a file and how it was framed, or null for a bank image.
  let shown = null;
  const shows = (picture) => {
    shown = picture;
    document.body.classList.toggle("lpk-from-file", Boolean(picture));
  };

  const post = async (address, body) => {
    const headers = { "content-type": "application/octet-stream" };
    const answer = await fetch(address, { method: "POST", headers, body });
    if (!answer.ok) throw new Error(await answer.text());
    return answer;
  };

  // The server keeps no file, so it is sent once more, after the result.
  const putBack = async (button) => {
    const label = button.textContent;
    button.disabled = true;
    button.textContent = "working …";
    try {
      const { file, framing } = shown;
      const result = await (await fetch(button.dataset.closed)).blob();
      const address = `lpkernel/whole?framing=${framing}&result=${result.size}`;
      const picture = URL.createObjectURL(await (await post(address, new Blob([result, file]))).blob());
      save(picture, `${file.name.replace(/\.[^.]*$/, "")}-${button.dataset.name}.png`);
      setTimeout(() => URL.revokeObjectURL(picture), 60000);
      button.textContent = label;
    } catch (error) {
      button.textContent = `${label}: ${error.message}`;
    }
    say(button.textContent);
    button.disabled = false;
  };

  // The server answers with the picture as it frames it, or with what is wrong with it.
  let latest = null;
  const sendFile = async (file) => {
    latest = file;
    const most = 64 * 2 ** 20;
    let words;
    try {
      if (file.size > most) throw new Error(`${file.size} bytes, expected at most ${most}; shrink it`);
      const framing = document.querySelector("#lpk-edit-file select").value;
      words = await (await post(`lpkernel/picture?framing=${framing}`, file)).text();
      shows({ file, framing });
    } catch (error) {
      words = `${file.name}: ${error.message}`;
    }
    tell("lpk-picture", words);
  };
  document.addEventListener("change", (event) => {
    if (event.target.matches && event.target.matches("#lpk-edit-file select") && latest) sendFile(latest);
    if (!event.target.matches || !event.target.matches("#lpk-edit-file input[type=file]")) return;
    if (event.target.files.length) sendFile(event.target.files[0]);
    event.target.value = "";  // or the same file could not be chosen again
  });
  const over = (event) => event.target.closest && event.target.closest(".lpk-file");
  document.addEventListener("dragover", (event) => {
    if (over(event)) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    if (!over(event)) return;
    event.preventDefault();
    if (event.dataTransfer.files.length) sendFile(event.dataTransfer.files[0]);
  });
})();
