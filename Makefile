# Shortcuts for `python3 -m local`, which also works without make.
PYTHON ?= python3
LOCAL = @command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is required as $(PYTHON); choose another with PYTHON=..."; exit 1; }; exec $(PYTHON) -m local

.PHONY: run test acceptance coverage chat setup lock clean key
run: ## start everything on 127.0.0.1 (PORT=7071; with AUTH=1 people sign in)
	$(LOCAL) run
test: ## run every check
	$(LOCAL) test
acceptance: ## run the long tests, which `make test` omits
	$(LOCAL) acceptance
coverage: ## run the tests with branch coverage; fails below the minimum
	$(LOCAL) coverage
chat: ## start the terminal client (ARGS="--session mine")
	$(LOCAL) chat -- $(ARGS)
setup: ## install what run and test need
	$(LOCAL) setup
lock: ## update the locked requirements from the *.in files (ARGS=--upgrade)
	$(LOCAL) lock -- $(ARGS)
clean: ## remove the local data
	$(LOCAL) clean
key: ## generate a random key and its hash (NAME=ada)
	$(LOCAL) key "$(NAME)"
