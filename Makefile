# One-liners over `python3 -m local`, which is also what to type on a machine without make.
PYTHON ?= python3
LOCAL = @command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed, as $(PYTHON) (or PYTHON=...)"; exit 1; }; exec $(PYTHON) -m local

.PHONY: run test acceptance chat setup clean key
run: ## start everything on this machine (PORT=7071)
	$(LOCAL) run
test: ## every check
	$(LOCAL) test
acceptance: ## the long and rare tests, which `make test` leaves out
	$(LOCAL) acceptance
chat: ## ARGS="--session mine": chat with the service, at a terminal
	$(LOCAL) chat -- $(ARGS)
setup: ## install what run and test need
	$(LOCAL) setup
clean: ## remove the local data
	$(LOCAL) clean
key: ## NAME=who: a random key and its hash
	$(LOCAL) key "$(NAME)"
