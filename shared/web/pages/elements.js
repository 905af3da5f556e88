// Elements and dialogs. Text is only set as text: the content security policy forbids innerHTML.

export const byId = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const created = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in created) created[key] = value;
    else created.setAttribute(key, value);
  }
  created.append(...children);
  return created;
}

export function svgElement(name, attributes = {}, ...children) {
  const created = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) created.setAttribute(key, value);
  created.append(...children);
  return created;
}

// Shows a dialog. Resolves to the texts of its fields, without blanks around them; to null if it was cancelled or a
// required one is blank. `fields`: [{label, type, value, required, autofocus}]. `focusAction`: focuses the button instead
// of a field.
export function showDialog({ title, text, action, fields = [], focusAction = false }) {
  return new Promise((resolve) => {
    const heading = element("h2", { id: "dialog-title" }, title);
    const inputs = fields.map(({ label, ...properties }, index) =>
      element("input", { id: `dialog-input-${index}`, autocomplete: "off", maxLength: 500, ...properties }),
    );
    const labelled = inputs.flatMap((input, index) => [
      element("label", { htmlFor: input.id }, fields[index].label),
      input,
    ]);
    const cancel = element("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
    const buttons = element(
      "div",
      { className: "buttons" },
      cancel,
      element("button", { className: "primary", autofocus: focusAction }, action),
    );
    const form = element("form", {}, heading, element("p", {}, text), ...labelled, buttons);
    const dialog = element("dialog", { "aria-labelledby": "dialog-title" }, form);
    let result = null;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const entered = inputs.map((input) => input.value.trim());
      result = inputs.some((input, index) => input.required && !entered[index]) ? null : entered;
      dialog.close();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(result);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
