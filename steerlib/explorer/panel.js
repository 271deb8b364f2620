// Two unlabelled answers; the keys 1, 2 and 0 choose. Text reaches the page as text alone.
const ANSWER = "flex:1;min-width:0;white-space:pre-wrap;overflow-wrap:anywhere;border-top:3px solid #777;padding:6px 0;min-height:7em";
const KEYS = [[1, "1: the first"], [2, "2: the second"], [0, "0: no difference"]];

function make(tag, words = "", style = "") {
  return Object.assign(document.createElement(tag), { textContent: words, style });
}

export default {
  render({ model, el: root }) {
    const show = () => {
      const pair = model.get("pair"), started = performance.now();
      const choose = (choice) => {
        if (pair.texts) model.send({ choice, number: pair.number, seconds: (performance.now() - started) / 1000 });
      };
      const answers = make("div", "", "display:flex;gap:18px"), buttons = make("div");
      answers.append(...(pair.texts ?? []).map((text) => make("div", text, ANSWER)));
      for (const [key, words] of pair.texts ? KEYS : []) {
        const button = make("button", words, "margin-right:8px");
        button.onclick = () => choose(key);
        button.setAttribute("data-lm-suppress-shortcuts", "true"); // 1 is a key of JupyterLab's too
        buttons.append(button);
      }
      root.replaceChildren(make("div", pair.said, "font-size:12px"), make("p", pair.prompt ?? "", "white-space:pre-wrap;font-weight:600"), answers, buttons);
      root.onkeydown = (event) => {
        if (!["0", "1", "2"].includes(event.key)) return;
        event.stopPropagation();
        choose(+event.key);
      };
    };
    Object.assign(root, { tabIndex: 0, ariaLabel: "Which answer is better? Press 1, 2 or 0" });
    root.setAttribute("data-lm-suppress-shortcuts", "true");
    root.classList.add("blind-panel");
    model.on("change:pair", () => { show(); root.focus({ preventScroll: true }); });
    show();
  },
};
