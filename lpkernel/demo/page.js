// Painting a mask and showing a cell's source, which must follow the pointer; sending a picture; choosing a result.
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

  const stroke = (event) => {
    const { canvas, context, last } = painting;
    const tools = canvas.closest(".lpk-paint").parentElement;
    const [x, y] = place(canvas, event);
    const here = [x * canvas.width, y * canvas.height];
    context.globalCompositeOperation = tools.querySelector(".lpk-erase").checked ? "destination-out" : "source-over";
    context.strokeStyle = "#fff";
    context.lineCap = "round";
    context.lineWidth = (tools.querySelector(".lpk-brush").value / 128) * canvas.width;
    context.beginPath();
    context.moveTo(...(last || here));
    context.lineTo(...here);
    context.stroke();
    painting.last = here;
  };

  document.addEventListener("pointerdown", (event) => {
    if (!event.target.matches || !event.target.matches(".lpk-paint canvas")) return;
    event.preventDefault();
    event.target.setPointerCapture(event.pointerId);
    painting = { canvas: event.target, context: event.target.getContext("2d"), last: null };
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

  const show = (view, event, hold) => {
    const sheet = view.closest(".lpk-cells");
    if (sheet.given !== sheet.dataset.map) {  // the page changes a sheet in place
      sheet.given = sheet.dataset.map;
      sheet.sources = JSON.parse(sheet.given);
      sheet.dataset.held = "";
    }
    if (sheet.dataset.held && !hold) return;
    const grid = Number(sheet.dataset.grid);
    const [x, y] = place(view, event).map((part) => Math.min(grid - 1, Math.max(0, Math.floor(part * grid))));
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
    if (view) show(view, event, false);
  });
  document.addEventListener("click", (event) => {
    const view = event.target.closest && event.target.closest(".lpk-view");
    if (view) show(view, event, true);
    const thumb = event.target.closest && event.target.closest("#lpk-provenance-gallery .lpk-thumb");
    if (thumb) tell("lpk-choice", thumb.dataset.index);
    if (event.target.matches && event.target.matches(".lpk-clear")) {
      clear(event.target.closest(".lpk-tools").parentElement.querySelector("canvas"));
      send("lpk-mask", "");
    }
  });

  // The server answers with the picture as it frames it, or with what is wrong with it.
  const sendFile = async (file) => {
    const most = 64 * 2 ** 20;
    let words;
    try {
      if (file.size > most) throw new Error(`${file.size} bytes, expected at most ${most}; shrink it`);
      const headers = { "content-type": "application/octet-stream" };
      const answer = await fetch("lpkernel/picture", { method: "POST", headers, body: file });
      words = await answer.text();
      if (!answer.ok) throw new Error(words);
    } catch (error) {
      words = `${file.name}: ${error.message}`;
    }
    tell("lpk-picture", words);
  };
  document.addEventListener("change", (event) => {
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
